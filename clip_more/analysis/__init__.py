"""What became of features, classifier and tail: figures of the long-tail literature on one run, and a diagnosis."""
