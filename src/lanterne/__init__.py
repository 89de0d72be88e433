"""lanterne: train one neural network over a fleet of unequal devices without waiting for the slowest."""
