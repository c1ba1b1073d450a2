"""What each part of ULMFiT brings, measured: `ulmfit-fast ablate`."""
