"""Does sharpening raise what goes with self-reward? Covariances and gains, from stores of completions."""
