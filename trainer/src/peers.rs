//! Several processes that train one network, each on its share of every batch, under the variables that `torchrun` sets.
//!
//! A star: rank 0 sums what all give, in the order of their ranks, and sends the sum back. So every process sees the
//! same bits, and a run with the same number of processes is the same run. Why it is not NCCL or Gloo: ADR 0009.

use crate::request::Request;
use anyhow::{Result, bail};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::time::Duration;
use tch::Tensor;

/// Time in which all processes must have come together.
const MEET: Duration = Duration::from_secs(300);
/// Longest wait for another process while training: rank 0 may be evaluating.
const SILENCE: Duration = Duration::from_secs(3600);

/// A process that does not take part any more.
#[derive(Debug, thiserror::Error)]
#[error(
    "lost rank {rank} of {world} ({source}): its own output says why. Where a checkpoint was written, start all processes \
     again with --resume"
)]
struct Lost {
    rank: usize,
    world: usize,
    source: std::io::Error,
}

/// How many processes of this run are on this machine: what `LOCAL_WORLD_SIZE` of `torchrun` says, else all of them.
pub(crate) fn on_this_machine() -> Result<u64> {
    let said = number("LOCAL_WORLD_SIZE")?;
    Ok(said.or(number("WORLD_SIZE")?).map_or(1, |n| n.max(1) as u64))
}

/// The processes of a run, seen from one of them.
#[derive(Debug)]
pub(crate) struct Peers {
    /// Number of this process; 0 writes and reports.
    pub(crate) rank: usize,
    /// How many there are.
    pub(crate) world: usize,
    /// Rank 0: to every other, in order. Others: to rank 0.
    links: Vec<TcpStream>,
}

impl Peers {
    /// One process.
    pub(crate) const fn alone() -> Self {
        Self { rank: 0, world: 1, links: Vec::new() }
    }

    /// Meets the other processes that `WORLD_SIZE`, `RANK`, `MASTER_ADDR` and `MASTER_PORT` speak of; alone where there
    /// is no `WORLD_SIZE`. The port used is the one after `MASTER_PORT`, which `torchrun` itself listens on.
    pub(crate) fn meet() -> Result<Self> {
        let Some(world) = number("WORLD_SIZE")?.filter(|&world| world > 1) else { return Ok(Self::alone()) };
        let missing =
            |key: &str| Request(format!("WORLD_SIZE is {world}, but {key} is not set; start the processes with torchrun"));
        let rank = number("RANK")?.ok_or_else(|| missing("RANK"))?;
        let port = number("MASTER_PORT")?.ok_or_else(|| missing("MASTER_PORT"))?;
        let host = variable("MASTER_ADDR").ok_or_else(|| missing("MASTER_ADDR"))?;
        let port = u16::try_from(port + 1).map_err(|_| Request(format!("MASTER_PORT={port}: expected at most 65534")))?;
        if rank >= world {
            return Err(Request(format!("RANK={rank}: expected less than WORLD_SIZE={world}")).into());
        }
        Self::connect(rank, world, &host, port)
    }

    fn connect(rank: usize, world: usize, host: &str, port: u16) -> Result<Self> {
        let links = if rank == 0 { accept_all(world, host, port)? } else { vec![reach(rank, world, host, port)?] };
        for link in &links {
            link.set_nodelay(true)?;
            link.set_read_timeout(Some(SILENCE))?;
            link.set_write_timeout(Some(SILENCE))?;
        }
        Ok(Self { rank, world, links })
    }

    /// The samples of a batch that are this process's.
    pub(crate) const fn share(&self, batch: usize) -> Range<usize> {
        let share = batch / self.world;
        self.rank * share..(self.rank + 1) * share
    }

    /// Replaces `values` by their sum over all processes.
    pub(crate) fn sum(&mut self, values: &mut [f32]) -> Result<()> {
        if self.world == 1 {
            return Ok(());
        }
        let mut bytes = vec![0; values.len() * 4];
        if self.rank == 0 {
            for rank in 1..self.world {
                self.receive(rank, &mut bytes)?;
                for (value, other) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value += f32::from_le_bytes(*other);
                }
            }
        }
        pack(values, &mut bytes);
        if self.rank == 0 {
            return (1..self.world).try_for_each(|rank| self.send(rank, &bytes));
        }
        self.send(0, &bytes)?;
        self.receive(0, &mut bytes)?;
        for (value, sum) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*sum);
        }
        Ok(())
    }

    /// The sum of a tensor over all processes, through the memory of the host.
    pub(crate) fn sum_tensor(&mut self, tensor: Tensor) -> Result<Tensor> {
        if self.world == 1 {
            return Ok(tensor);
        }
        let mut values = Vec::<f32>::try_from(&tensor.to_device(tch::Device::Cpu))?;
        self.sum(&mut values)?;
        Ok(Tensor::from_slice(&values).to_device(tensor.device()))
    }

    /// Whether it holds in any process.
    pub(crate) fn any(&mut self, holds: bool) -> Result<bool> {
        let mut count = [f32::from(u8::from(holds))];
        self.sum(&mut count)?;
        Ok(count[0] > 0.0)
    }

    /// Fails in every process if `digest` is not the same in all; `what` names it.
    pub(crate) fn agree(&mut self, what: &str, digest: [u8; 32]) -> Result<()> {
        // 256 sums of bits: world or 0 for each where all agree.
        let bit = |n: usize| f32::from(digest[n / 8] >> (n % 8) & 1);
        let mut bits: Vec<f32> = (0..256).map(bit).collect();
        self.sum(&mut bits)?;
        if (0..256).any(|n| bits[n] != bit(n) * self.world as f32) {
            bail!("the {} processes do not all have the same {what}", self.world);
        }
        Ok(())
    }

    fn send(&mut self, rank: usize, bytes: &[u8]) -> Result<()> {
        let link = &mut self.links[rank.saturating_sub(1)];
        Ok(link.write_all(bytes).map_err(|source| Lost { rank, world: self.world, source })?)
    }

    fn receive(&mut self, rank: usize, bytes: &mut [u8]) -> Result<()> {
        let link = &mut self.links[rank.saturating_sub(1)];
        Ok(link.read_exact(bytes).map_err(|source| Lost { rank, world: self.world, source })?)
    }
}

fn pack(values: &[f32], bytes: &mut [u8]) {
    for (slot, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *slot = value.to_le_bytes();
    }
}

/// The first bytes on a link: what it is for, its rank, how many there are.
fn greeting(rank: usize, world: usize) -> [u8; 16] {
    let mut bytes = *b"fovea1\0\0\0\0\0\0\0\0\0\0";
    bytes[8..12].copy_from_slice(&(rank as u32).to_le_bytes());
    bytes[12..].copy_from_slice(&(world as u32).to_le_bytes());
    bytes
}

/// Tries until `MEET` is over.
fn within<T>(mut attempt: impl FnMut() -> std::io::Result<Option<T>>) -> std::io::Result<Option<T>> {
    const PAUSE: Duration = Duration::from_millis(50);
    for _ in 0..MEET.as_millis() / PAUSE.as_millis() {
        if let Some(found) = attempt()? {
            return Ok(Some(found));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(None)
}

fn accept_all(world: usize, host: &str, port: u16) -> Result<Vec<TcpStream>> {
    let listener = TcpListener::bind((host, port))
        .map_err(|error| Request(format!("rank 0 cannot listen on {host}:{port} (MASTER_PORT + 1): {error}")))?;
    listener.set_nonblocking(true)?;
    let mut links: Vec<Option<TcpStream>> = (1..world).map(|_| None).collect();
    while let Some(rank) = links.iter().position(Option::is_none).map(|idx| idx + 1) {
        let link = within(|| match listener.accept() {
            Ok((link, _)) => Ok(Some(link)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        })?;
        let Some(mut link) = link else {
            bail!("rank {rank} of {world} did not come to {host}:{port} within {} s", MEET.as_secs());
        };
        link.set_nonblocking(false)?;
        link.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut hello = [0; 16];
        // Strangers and doubles are turned away.
        if link.read_exact(&mut hello).is_ok()
            && let Some(rank) = (1..world).find(|&rank| greeting(rank, world) == hello)
            && links[rank - 1].is_none()
        {
            links[rank - 1] = Some(link);
        }
    }
    Ok(links.into_iter().flatten().collect())
}

fn reach(rank: usize, world: usize, host: &str, port: u16) -> Result<TcpStream> {
    // Rank 0 may not be listening yet.
    let Some(mut link) = within(|| Ok(TcpStream::connect((host, port)).ok()))? else {
        bail!("rank {rank} of {world} did not reach rank 0 at {host}:{port} (MASTER_PORT + 1) within {} s", MEET.as_secs());
    };
    link.write_all(&greeting(rank, world))?;
    Ok(link)
}

/// Which of this machine's GPUs is this process's.
pub(crate) fn local_rank() -> Result<usize> {
    Ok(number("LOCAL_RANK")?.unwrap_or(0))
}

fn variable(key: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "what torchrun says, read once at the start of a run")]
    std::env::var(key).ok()
}

fn number(key: &str) -> Result<Option<usize>, Request> {
    let parse = |text: String| text.parse().map_err(|_| Request(format!("{key}={text}: expected a whole number")));
    variable(key).map(parse).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three processes in three threads.
    fn together<T: Send + 'static>(work: fn(Peers) -> T) -> Vec<T> {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let threads: Vec<_> =
            (0..3).map(|rank| std::thread::spawn(move || work(Peers::connect(rank, 3, "127.0.0.1", port).unwrap()))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }

    #[test]
    fn sums_are_in_the_order_of_ranks_and_the_same_everywhere() {
        // In any other order the small ones would be lost in, or survive, the large ones.
        let parts = [1e8_f32, -1e8, 1.25];
        let sums = together(|mut peers| {
            let mut values = vec![[1e8_f32, -1e8, 1.25][peers.rank]; 70_000];
            peers.sum(&mut values).unwrap();
            assert!(peers.any(peers.rank == 2).unwrap() && !peers.any(false).unwrap());
            assert_eq!(peers.share(12), peers.rank * 4..peers.rank * 4 + 4);
            values
        });
        let want = parts[0] + parts[1] + parts[2];
        assert!(sums.iter().flatten().all(|value| value.to_bits() == want.to_bits()));
    }

    #[test]
    fn a_difference_and_a_lost_process_are_seen_by_the_others() {
        let messages = together(|mut peers| {
            peers.agree("seed", [7; 32]).unwrap();
            let rank = peers.rank;
            let differs = peers.agree("data", [rank as u8; 32]).unwrap_err().to_string();
            if rank == 2 {
                return differs;
            }
            format!("{differs}; {}", peers.any(false).unwrap_err())
        });
        assert!(messages.iter().all(|text| text.contains("do not all have the same data")), "{messages:?}");
        assert!(messages[0].contains("lost rank 2 of 3") && messages[1].contains("lost rank 0 of 3"), "{messages:?}");
    }
}
