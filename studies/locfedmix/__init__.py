"""LocFedMix-SL beside split and federated baselines: 4 to 40 clients, IID and skewed, with and without stragglers."""
