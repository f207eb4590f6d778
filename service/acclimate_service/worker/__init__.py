"""The worker: claims jobs, trains in a child process, judges what comes out."""
