"""SALF beside the baselines against stragglers: on MNIST and CIFAR-10, and where the optimum is known."""
