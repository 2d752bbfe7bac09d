//! What a power cut leaves: a choice, and the disk that follows from it.
//!
//! Pending changes of contents are cut at 4 KiB page boundaries into **page versions**, numbered over all files in the
//! order in which they were made; a reservation of blocks and an emptied file count as one version each. Nothing else
//! is implied by that order: any set of versions may have landed (a page is old, new or a mixture), and any prefix of
//! the name operations, or in paranoid choices any subset. A file whose name landed may be missing its contents, then
//! it is empty, full of zeros, or both in parts.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use super::node::{Change, Data, Image, Node, PAGE};
use super::{Dir, NameChange};

/// What of the pending changes a power cut leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashChoice {
    /// Of the names.
    pub names: NameChoice,
    /// Of the contents.
    pub writes: WriteChoice,
    /// One page version that lands in part, whatever `writes` says of it. Not for `WriteChoice::Mixed`, which tears
    /// by itself.
    pub torn: Option<Torn>,
}

/// Which pending name operations landed. Numbered over all directories, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameChoice {
    /// None of them.
    None,
    /// All.
    All,
    /// The first so many: what a file system with a journal can leave.
    Prefix(usize),
    /// Each by the flip of a coin: paranoid.
    Subset {
        /// Of the coin.
        seed: u64,
    },
}

/// Which page versions landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteChoice {
    /// None of them.
    None,
    /// All.
    All,
    /// The first so many.
    Prefix(usize),
    /// All but the first.
    AllButFirst,
    /// All but the last.
    AllButLast,
    /// Those whose bit is set; bit 0 is the first. From the 65th on none.
    Mask(u64),
    /// Each by the flip of a coin.
    Subset {
        /// Of the coin.
        seed: u64,
    },
    /// Each block of `grain` bytes of each page shows how it was after a random number of that page's versions. 4096:
    /// whole pages, old, new, or in between; 512: sectors; 1: mixtures of bytes.
    Mixed {
        /// Of the die.
        seed: u64,
        /// Bytes, at least 1.
        grain: usize,
    },
}

/// A page version that lands in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn {
    /// Which, by number.
    pub version: usize,
    /// How many of its first bytes land.
    pub keep: usize,
}

/// How much is pending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingCounts {
    /// Page versions.
    pub versions: usize,
    /// Name operations.
    pub names: usize,
}

impl CrashChoice {
    /// Only what was synced.
    pub const NOTHING: Self =
        Self { names: NameChoice::None, writes: WriteChoice::None, torn: None };
    /// All: as after `kill -9`.
    pub const EVERYTHING: Self =
        Self { names: NameChoice::All, writes: WriteChoice::All, torn: None };

    /// Any choice that is possible with so much pending.
    pub fn random(seed: u64, pending: PendingCounts) -> Self {
        let mut dice = Dice(seed);
        let names = match dice.below(5) {
            0 => NameChoice::None,
            1 => NameChoice::All,
            2 => NameChoice::Subset { seed: dice.roll() },
            _ => NameChoice::Prefix(dice.below(pending.names as u64 + 1) as usize),
        };
        let writes = match dice.below(10) {
            0 => WriteChoice::None,
            1 => WriteChoice::All,
            2 => WriteChoice::AllButFirst,
            3 => WriteChoice::AllButLast,
            4 | 5 => WriteChoice::Prefix(dice.below(pending.versions as u64 + 1) as usize),
            6 | 7 => WriteChoice::Subset { seed: dice.roll() },
            _ => {
                let grain = [4096, 512, 8, 1][dice.below(4) as usize];
                WriteChoice::Mixed { seed: dice.roll(), grain }
            }
        };
        let torn = (pending.versions > 0 && dice.below(2) == 0).then(|| Torn {
            version: dice.below(pending.versions as u64) as usize,
            keep: match dice.below(2) {
                0 => 512 * dice.below(8) as usize,
                _ => dice.below(PAGE) as usize,
            },
        });
        Self { names, writes, torn }
    }
}

/// Splitmix64: small, and the same everywhere.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }
}

/// A page version: a part of one pending change of one file.
struct Version {
    order: u64,
    node: usize,
    change: usize,
    /// Bytes of the change's data.
    from: u64,
    to: u64,
}

pub(super) fn counts(dirs: &BTreeMap<PathBuf, Dir>) -> PendingCounts {
    let versions = reachable(dirs).into_iter().map(|node| {
        let contents = node.lock();
        contents.pending.iter().map(|pending| parts(&pending.change).count()).sum::<usize>()
    });
    PendingCounts {
        versions: versions.sum(),
        names: dirs.values().map(|dir| dir.pending.len()).sum(),
    }
}

/// The directories after the cut, with files of their own and nothing pending.
pub(super) fn image(dirs: &BTreeMap<PathBuf, Dir>, choice: &CrashChoice) -> BTreeMap<PathBuf, Dir> {
    let nodes = reachable(dirs);
    let mut images: Vec<Image> = nodes.iter().map(|node| node.lock().durable.clone()).collect();
    match choice.writes {
        WriteChoice::Mixed { seed, grain } => land_mixed(&nodes, &mut images, seed, grain.max(1)),
        _ => land_versions(&nodes, &mut images, choice),
    }
    let landed: HashMap<u64, Arc<Node>> = nodes
        .iter()
        .zip(images)
        .map(|(node, image)| (node.id, Node::new(node.id, image)))
        .collect();

    let name_lands = name_choice(dirs, choice.names);
    dirs.iter()
        .map(|(path, dir)| {
            let mut names = dir.durable.clone();
            for pending in &dir.pending {
                if name_lands(pending.order) {
                    pending.change.apply(&mut names);
                }
            }
            for node in names.values_mut() {
                if let Some(copy) = landed.get(&node.id) {
                    *node = Arc::clone(copy);
                }
            }
            (path.clone(), Dir { durable: names.clone(), names, pending: Vec::new() })
        })
        .collect()
}

/// All files that any choice may leave a name for, in the order in which they were made.
fn reachable(dirs: &BTreeMap<PathBuf, Dir>) -> Vec<Arc<Node>> {
    let mut nodes = BTreeMap::new();
    for dir in dirs.values() {
        let pending = dir.pending.iter().filter_map(|pending| match &pending.change {
            NameChange::Create { node, .. } | NameChange::Rename { node, .. } => Some(node),
            NameChange::Unlink { .. } => None,
        });
        for node in dir.durable.values().chain(pending) {
            nodes.entry(node.id).or_insert_with(|| Arc::clone(node));
        }
    }
    nodes.into_values().collect()
}

/// Cuts a change at page boundaries: ranges of its data.
fn parts(change: &Change) -> impl Iterator<Item = (u64, u64)> {
    let (at, len) = match change {
        Change::Write { at, data } => (*at, data.len()),
        // One part without data.
        Change::Extend { .. } | Change::Empty => (0, 1),
    };
    let mut from = 0;
    std::iter::from_fn(move || {
        if from >= len {
            return None;
        }
        let part = (from, (((at + from) / PAGE + 1) * PAGE - at).min(len));
        from = part.1;
        Some(part)
    })
}

fn land_versions(nodes: &[Arc<Node>], images: &mut [Image], choice: &CrashChoice) {
    let mut versions = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        for (change, pending) in node.lock().pending.iter().enumerate() {
            versions.extend(parts(&pending.change).map(|(from, to)| Version {
                order: pending.order,
                node: index,
                change,
                from,
                to,
            }));
        }
    }
    versions.sort_by_key(|version| (version.order, version.from));
    let count = versions.len();
    let mut dice = match choice.writes {
        WriteChoice::Subset { seed } => Dice(seed),
        _ => Dice(0),
    };
    for (number, version) in versions.iter().enumerate() {
        let lands = match choice.writes {
            WriteChoice::None => false,
            WriteChoice::All | WriteChoice::Mixed { .. } => true,
            WriteChoice::Prefix(end) => number < end,
            WriteChoice::AllButFirst => number > 0,
            WriteChoice::AllButLast => number + 1 < count,
            WriteChoice::Mask(mask) => number < 64 && mask >> number & 1 == 1,
            WriteChoice::Subset { .. } => dice.below(2) == 1,
        };
        let torn = choice.torn.filter(|torn| torn.version == number);
        if !lands && torn.is_none() {
            continue;
        }
        let contents = nodes[version.node].lock();
        match &contents.pending[version.change].change {
            Change::Write { at, data } => {
                let keep = torn.map_or(u64::MAX, |torn| torn.keep as u64);
                let to = version.from.saturating_add(keep).min(version.to);
                images[version.node].apply_part(*at, data, version.from, to);
            }
            // Lengths do not tear.
            change if lands => images[version.node].apply(change),
            _ => {}
        }
    }
}

fn land_mixed(nodes: &[Arc<Node>], images: &mut [Image], seed: u64, grain: usize) {
    let mut dice = Dice(seed);
    for (node, image) in nodes.iter().zip(images) {
        let contents = node.lock();
        let mut pages: BTreeMap<u64, Vec<(u64, &Data, u64, u64)>> = BTreeMap::new();
        for pending in &contents.pending {
            match &pending.change {
                Change::Write { at, data } => {
                    for (from, to) in parts(&pending.change) {
                        pages.entry((at + from) / PAGE).or_default().push((*at, data, from, to));
                    }
                }
                change if dice.below(2) == 1 => image.apply(change),
                _ => {}
            }
        }
        for (page, versions) in &pages {
            for block in (page * PAGE..(page + 1) * PAGE).step_by(grain) {
                let end = (block + grain as u64).min((page + 1) * PAGE);
                let shown = dice.below(versions.len() as u64 + 1) as usize;
                for (at, data, from, to) in &versions[..shown] {
                    // The version's bytes within the block, as a range of its data.
                    let (from, to) = (
                        (*from).max(block.saturating_sub(*at)),
                        (*to).min(end.saturating_sub(*at)),
                    );
                    if from < to {
                        image.apply_part(*at, data, from, to);
                    }
                }
            }
        }
    }
}

/// Whether the operation with this order lands.
fn name_choice(dirs: &BTreeMap<PathBuf, Dir>, choice: NameChoice) -> impl Fn(u64) -> bool {
    let mut orders: Vec<u64> =
        dirs.values().flat_map(|dir| dir.pending.iter().map(|pending| pending.order)).collect();
    orders.sort_unstable();
    let mut dice = match choice {
        NameChoice::Subset { seed } => Dice(seed),
        _ => Dice(0),
    };
    let mut number = 0;
    orders.retain(|_| {
        number += 1;
        match choice {
            NameChoice::None => false,
            NameChoice::All => true,
            NameChoice::Prefix(end) => number <= end,
            NameChoice::Subset { .. } => dice.below(2) == 1,
        }
    });
    move |order| orders.binary_search(&order).is_ok()
}
