"""torchrun of a host that others can do without: `python launch/elastic_agent.py TORCHRUN_ARGUMENTS`.

An agent of torchrun that ends with an error closes the meeting of all hosts as its last act (torch 2.11 to 2.13), also
by bytes that a cut link delivers when it is back: nobody could join any more. With MIN:MAX hosts only the head may do
that. The others just end, and are missed after their last beat.
"""

from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler
from torch.distributed.run import main


def leave(_: DynamicRendezvousHandler) -> bool:
    """Takes the place of closing the meeting; the beats end with the process."""
    return True


if __name__ == "__main__":
    DynamicRendezvousHandler.shutdown = leave
    main()
