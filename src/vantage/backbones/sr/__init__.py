"""Super-resolution networks: a small picture in, a picture `scale` times as large out; one family per file."""
