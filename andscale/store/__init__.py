"""Everything the jobs exchange on disk; the only contract that jobs share."""
