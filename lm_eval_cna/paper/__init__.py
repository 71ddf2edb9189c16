"""The paper's tables: what was published, the same measured here, and whether the two agree."""
