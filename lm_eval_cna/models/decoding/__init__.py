"""One model's tokens: greedy generation, shared prefixes, caches and log-likelihoods."""
