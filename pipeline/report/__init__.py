"""The page that `parvae evaluate --report` writes."""
