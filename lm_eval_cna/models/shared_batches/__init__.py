"""Several settings of one model in the same batches."""
