"""Methods that PEFT has not: bottleneck adapters, BitFit, and training of the base itself as something to compare."""
