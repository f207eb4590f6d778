"""Ways of adapting a classifier, run side by side on the same images and scored in one place."""
