"""Mathematics meets Lightning: one thin LightningModule per stage, and the callbacks that own cadence."""
