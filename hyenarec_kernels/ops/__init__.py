"""The operators as PyTorch sees them: argument checks, schemas, fakes and autograd. No arithmetic."""
