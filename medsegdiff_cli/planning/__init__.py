"""Planning: from a fingerprint to geometry, patches, splits and scales, each choice explained in a sentence."""
