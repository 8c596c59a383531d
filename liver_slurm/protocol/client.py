"""Client end of the control channel: one request, one reply."""

from __future__ import annotations

from liver_slurm.base.errors import ControlError
from liver_slurm.protocol.messages import FromClient, Reply
from liver_slurm.protocol.wire import decode_to_client, encode
from liver_slurm.rundir import address, keys
from liver_slurm.rundir.paths import RunDir


def request(run_dir: RunDir, message: FromClient, timeout: float = 5.0) -> Reply:
    """Send a request to the run's coordinator and wait for the reply.

    Raises:
        ControlError: there is no coordinator, it does not answer within ``timeout`` seconds, or not in our protocol.
    """
    import msgspec
    import zmq  # not at the top: `liver-slurm status` without a job need not pay for it

    where = address.read(run_dir.address_file)
    pairs = keys.load(run_dir.secrets)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.curve_publickey, socket.curve_secretkey = pairs.client.public, pairs.client.secret
        socket.curve_serverkey = pairs.server.public
        socket.connect(where.endpoint)
        socket.send(encode(message))
        if not socket.poll(int(timeout * 1000)):
            raise ControlError(
                f"the coordinator at {where.host}:{where.port} did not answer within {timeout:g} s; "
                f"see {run_dir.logs / 'coordinator.log'}, or whether the job still runs"
            )
        try:
            return decode_to_client(socket.recv())
        except msgspec.DecodeError as error:
            raise ControlError(f"the coordinator's answer makes no sense ({error}); are both of one version?") from None
