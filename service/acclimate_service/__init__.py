"""The Acclimate service: adapt a served image classifier, and serve what a guard accepted."""
