"""Datasets, archives and the steps over them: Ray Data, Ray Train, Arrow; no argv."""
