"""Tasks other than refusal: capitals, subject-verb agreement, long answers to harmless prompts.

The items are made from lists and a small grammar, without downloads and random numbers, so that they are the same on
every machine. No torch here.
"""
