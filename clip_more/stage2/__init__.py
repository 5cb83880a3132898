"""A second stage: classifiers made anew on the features of a finished run, whose encoder stays as it is."""
