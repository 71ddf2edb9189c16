"""Items of the tasks that stand beside refusal: capitals, subject-verb agreement, long answers to harmless prompts.

No torch. Everything here is made from lists and a small grammar of our own; nothing is downloaded and no
random number is drawn, so that the items are the same on every machine and with every Python.
"""
