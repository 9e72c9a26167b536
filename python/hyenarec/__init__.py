"""HyenaRec: sequential recommendation for long histories."""
