"""What Acclimate talks about: names, examples, models, jobs, the guard. No I/O."""
