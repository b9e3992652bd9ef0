"""Tables: one row a thing. What adapterhub knows by name and does not compute.

`methods` (LoRA and kin), `tasks`, `families` (how architectures name their modules), `combinations` (how a stack
becomes one delta), `checks` (everything `adapt validate` can say, by code).
"""
