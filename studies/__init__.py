"""Studies: each compares methods on one question, as CONTRIBUTING says."""
