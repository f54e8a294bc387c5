"""Does sharpening raise rewards that co-vary with self-reward? Covariances and gains, from stores of completions."""
