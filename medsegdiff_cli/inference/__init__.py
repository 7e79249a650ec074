"""Windows, draws and fusion on tensors: shared by validation during training and by prediction."""
