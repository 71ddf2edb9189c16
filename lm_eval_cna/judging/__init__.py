"""The judge: any lm-eval model, asked for verdicts on responses, and the ledger of what it said."""
