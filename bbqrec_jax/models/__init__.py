"""Neural networks (flax.linen), one file per system or shared part."""
