"""Shared by the editors that write facts into MLP output maps (ROME, MEMIT and their kin)."""
