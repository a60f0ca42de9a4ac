"""From a call of a recurrent layer to the kernels: arrays, states, outputs, weights."""
