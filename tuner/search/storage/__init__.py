"""The ledger, its database, and the study's folder."""
