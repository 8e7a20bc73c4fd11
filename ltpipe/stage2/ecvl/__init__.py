"""ECVL and BALLAD: an adapter on the features of vision-language towers."""
