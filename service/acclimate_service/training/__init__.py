"""From labelled images to a candidate network. The only room, with worker, that knows torch."""
