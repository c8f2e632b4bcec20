"""What a corpus holds: proofs, single documents, statistics, pictures."""
