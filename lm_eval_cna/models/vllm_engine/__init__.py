"""What cna-vllm does inside vLLM's workers."""
