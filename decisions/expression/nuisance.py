"""Which latent sites a comparison draws anew from their prior, so that cells are compared at equal quality."""

from collections.abc import Sequence

from fieldguide.inference.posterior import Posterior


def redrawn_sites(posterior: Posterior, wanted: bool | str | Sequence[str] | None, argument: str) -> tuple[str, ...]:
    """Return the latent sites to draw anew from their prior.

    Parameters
    ----------
    posterior : Posterior
    wanted : bool, site or list of sites, optional
        None means those that the program declares (``Program.nuisance``), True the same, and an error where there are
        none; False leaves every cell its own values.
    argument : str
        Name of the user's argument, for errors.

    Raises
    ------
    ValueError
        Naming the argument: the program declares no such site, has no latent of that name, or would keep none.
    """
    if wanted is None or wanted is False:
        return () if wanted is False else posterior.nuisance
    if wanted is True:
        if not posterior.nuisance:
            raise ValueError(f"{argument}=True: the program declares no latent site of technical quality")
        return posterior.nuisance
    chosen = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    latents = posterior.latents
    for name in chosen:
        if name not in latents:
            raise ValueError(f"{argument}: no latent site {name!r}; there are {', '.join(latents)}")
    if set(latents) <= set(chosen):
        raise ValueError(f"{argument} draws every latent site anew: nothing of the cells would be left")
    return chosen
