"""RA-CT, gating by attention statistics."""
