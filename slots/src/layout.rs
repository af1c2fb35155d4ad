//! Where everything lies on the disk. Pure.
//!
//! The sizes are permanent: no update ever repartitions a disk, so they are
//! generous from the first release.

use std::fmt;
use std::str::FromStr;

use model::{Architecture, Digest};
use uuid::{Uuid, uuid};

/// Partitions begin and end at multiples of this many bytes.
pub const ALIGNMENT: u64 = 1 << 20;
/// Size of the EFI system partition in bytes.
pub const ESP_SIZE: u64 = 1 << 30;
/// Size of a root slot in bytes.
pub const ROOT_SIZE: u64 = 4 << 30;
/// Size of a verity slot in bytes.
pub const VERITY_SIZE: u64 = 64 << 20;
/// The least size of the data partition in bytes.
pub const MIN_DATA_SIZE: u64 = 512 << 20;
/// The smallest disk that a unit can be born on, in bytes.
pub const MIN_DISK_SIZE: u64 =
    ALIGNMENT + ESP_SIZE + 2 * (ROOT_SIZE + VERITY_SIZE) + MIN_DATA_SIZE + ALIGNMENT;

/// One of the two places for the operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// The slot that is written at birth.
    A,
    /// The other one.
    B,
}

impl Slot {
    /// Returns the slot that this one is not.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Returns `a` or `b`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One partition of the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The EFI system partition.
    Esp,
    /// A root file system.
    Root(Slot),
    /// The dm-verity hash tree of the root file system in the same slot.
    Verity(Slot),
    /// Everything that outlives a release.
    Data,
}

impl Part {
    /// All of them in the order of the disk.
    pub const ALL: [Self; 6] = [
        Self::Esp,
        Self::Root(Slot::A),
        Self::Verity(Slot::A),
        Self::Root(Slot::B),
        Self::Verity(Slot::B),
        Self::Data,
    ];

    /// Returns the partition's label in the table.
    pub fn label(self) -> &'static str {
        match self {
            Self::Esp => "esp",
            Self::Root(Slot::A) => "root-a",
            Self::Root(Slot::B) => "root-b",
            Self::Verity(Slot::A) => "verity-a",
            Self::Verity(Slot::B) => "verity-b",
            Self::Data => "data",
        }
    }

    /// Returns the partition's number in the table, from 1.
    pub fn number(self) -> u32 {
        match self {
            Self::Esp => 1,
            Self::Root(Slot::A) => 2,
            Self::Verity(Slot::A) => 3,
            Self::Root(Slot::B) => 4,
            Self::Verity(Slot::B) => 5,
            Self::Data => 6,
        }
    }

    /// Returns the type GUID of the Discoverable Partitions Specification: root and
    /// verity have one for each architecture.
    pub fn type_guid(self, architecture: Architecture) -> Uuid {
        match (self, architecture) {
            (Self::Esp, _) => uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b"),
            (Self::Root(_), Architecture::Amd64) => uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
            (Self::Root(_), Architecture::Arm64) => uuid!("b921b045-1df0-41c3-af44-4c6f280d3fae"),
            (Self::Verity(_), Architecture::Amd64) => uuid!("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"),
            (Self::Verity(_), Architecture::Arm64) => uuid!("df3300ce-d69f-4c92-978c-9bfb0f38d820"),
            // "Generic Linux data": nothing mounts it by itself. The type of
            // `/var` would want its GUID to be derived from the machine id.
            (Self::Data, _) => uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4"),
        }
    }

    /// Returns the attribute bits: root and verity are read-only for automatic mounts.
    pub fn attributes(self) -> u64 {
        match self {
            Self::Root(_) | Self::Verity(_) => 1 << 60,
            Self::Esp | Self::Data => 0,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl FromStr for Part {
    type Err = UnknownPart;

    fn from_str(label: &str) -> Result<Self, UnknownPart> {
        Self::ALL
            .into_iter()
            .find(|part| part.label() == label)
            .ok_or_else(|| UnknownPart(label.to_owned()))
    }
}

/// A label that is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("partition {0:?}: expected one of esp, root-a, verity-a, root-b, verity-b, data")]
pub struct UnknownPart(String);

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Which one it is.
    pub part: Part,
    /// Its first byte on the disk.
    pub start: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Its own GUID, `PARTUUID`.
    pub guid: Uuid,
}

/// The whole table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Size of the disk in bytes.
    pub disk_size: u64,
    /// GUID of the disk.
    pub disk_guid: Uuid,
    /// Whose operating system the slots are for.
    pub architecture: Architecture,
    /// The partitions in the order of [`Part::ALL`].
    pub partitions: Vec<Partition>,
}

/// Why there is no layout for a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The disk is too small.
    #[error("disk: {size} bytes, expected at least {MIN_DISK_SIZE}")]
    TooSmall {
        /// Its size in bytes.
        size: u64,
    },
}

impl Layout {
    /// Plans the table of a disk of `disk_size` bytes for machines of `architecture`.
    ///
    /// All GUIDs are derived from `seed`: the same seed gives the same table,
    /// and a seed that is unique to a disk gives GUIDs that are.
    ///
    /// # Errors
    /// When the disk is smaller than [`MIN_DISK_SIZE`].
    pub fn plan(
        disk_size: u64,
        seed: &Digest,
        architecture: Architecture,
    ) -> Result<Self, LayoutError> {
        if disk_size < MIN_DISK_SIZE {
            return Err(LayoutError::TooSmall { size: disk_size });
        }
        // The backup table takes less than one alignment unit at the end.
        let end = (disk_size - ALIGNMENT) / ALIGNMENT * ALIGNMENT;
        let mut start = ALIGNMENT;
        let partitions = Part::ALL
            .into_iter()
            .map(|part| {
                let size = match part {
                    Part::Esp => ESP_SIZE,
                    Part::Root(_) => ROOT_SIZE,
                    Part::Verity(_) => VERITY_SIZE,
                    Part::Data => end - start,
                };
                let partition = Partition {
                    part,
                    start,
                    size,
                    guid: derived_guid(seed, part.label()),
                };
                start += size;
                partition
            })
            .collect();
        Ok(Self {
            disk_size,
            disk_guid: derived_guid(seed, "disk"),
            architecture,
            partitions,
        })
    }

    /// Returns one partition.
    pub fn partition(&self, part: Part) -> &Partition {
        self.partitions
            .iter()
            .find(|partition| partition.part == part)
            .expect("a layout always holds all of its partitions")
    }

    /// Puts the root hash of a release into the GUIDs of a slot's partitions.
    pub fn set_slot(&mut self, slot: Slot, root_hash: &Digest) {
        let (root, verity) = slot_guids(root_hash);
        for partition in &mut self.partitions {
            if partition.part == Part::Root(slot) {
                partition.guid = root;
            } else if partition.part == Part::Verity(slot) {
                partition.guid = verity;
            }
        }
    }

    /// Returns the slot whose partitions carry `root_hash`, if one does.
    pub fn slot_of(&self, root_hash: &Digest) -> Option<Slot> {
        let guids = slot_guids(root_hash);
        [Slot::A, Slot::B].into_iter().find(|slot| {
            (
                self.partition(Part::Root(*slot)).guid,
                self.partition(Part::Verity(*slot)).guid,
            ) == guids
        })
    }
}

/// Returns the GUIDs of the root and the verity partition of a root hash: its
/// first and its last 128 bits, by which the initial RAM disk finds them.
pub fn slot_guids(root_hash: &Digest) -> (Uuid, Uuid) {
    let bytes = root_hash.as_bytes();
    let half = |from: usize| {
        let mut half = [0; 16];
        half.copy_from_slice(&bytes[from..from + 16]);
        Uuid::from_bytes(half)
    };
    (half(0), half(16))
}

fn derived_guid(seed: &Digest, label: &str) -> Uuid {
    let digest = Digest::of(format!("leapserv {seed} {label}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_bytes()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed() -> Digest {
        Digest::of(b"seed")
    }

    #[test]
    fn partitions_lie_one_after_the_other_and_leave_room_for_both_tables() {
        for size in [MIN_DISK_SIZE, MIN_DISK_SIZE + 12_345, 64 << 30] {
            let layout = Layout::plan(size, &seed(), Architecture::Amd64).unwrap();
            let mut end = ALIGNMENT;
            for partition in &layout.partitions {
                assert_eq!(partition.start, end);
                assert_eq!(partition.start % ALIGNMENT, 0);
                assert_eq!(partition.size % ALIGNMENT, 0);
                end += partition.size;
            }
            // 33 sectors of 512 bytes, or 5 of 4096.
            assert!(size - end >= 33 * 512);
            assert!(layout.partition(Part::Data).size >= MIN_DATA_SIZE);
        }
    }

    #[test]
    fn a_disk_that_is_too_small_is_refused() {
        let refused = Layout::plan(MIN_DISK_SIZE - 1, &seed(), Architecture::Amd64).unwrap_err();
        assert_eq!(
            refused,
            LayoutError::TooSmall {
                size: MIN_DISK_SIZE - 1
            }
        );
    }

    #[test]
    fn guids_depend_on_the_seed_and_on_nothing_else() {
        let one = Layout::plan(MIN_DISK_SIZE, &seed(), Architecture::Amd64).unwrap();
        assert_eq!(
            one,
            Layout::plan(MIN_DISK_SIZE, &seed(), Architecture::Amd64).unwrap()
        );
        let other =
            Layout::plan(MIN_DISK_SIZE, &Digest::of(b"other"), Architecture::Amd64).unwrap();
        let mut guids: Vec<_> = [&one, &other]
            .into_iter()
            .flat_map(|layout| layout.partitions.iter().map(|p| p.guid))
            .chain([one.disk_guid, other.disk_guid])
            .collect();
        guids.sort();
        guids.dedup();
        assert_eq!(guids.len(), 14);
    }

    #[test]
    fn a_slot_is_found_by_the_halves_of_its_root_hash() {
        let hash: Digest = "00112233445566778899aabbccddeeffffeeddccbbaa99887766554433221100"
            .parse()
            .unwrap();
        let mut layout = Layout::plan(MIN_DISK_SIZE, &seed(), Architecture::Amd64).unwrap();
        assert_eq!(layout.slot_of(&hash), None);
        layout.set_slot(Slot::B, &hash);
        assert_eq!(layout.slot_of(&hash), Some(Slot::B));
        assert_eq!(
            layout.partition(Part::Root(Slot::B)).guid.to_string(),
            "00112233-4455-6677-8899-aabbccddeeff"
        );
        assert_eq!(
            layout.partition(Part::Verity(Slot::B)).guid.to_string(),
            "ffeeddcc-bbaa-9988-7766-554433221100"
        );
    }

    #[test]
    fn another_architecture_changes_the_types_of_root_and_verity_alone() {
        let text = |architecture| {
            let layout = Layout::plan(MIN_DISK_SIZE, &seed(), architecture).unwrap();
            let lines = layout.partitions.iter().map(|partition| {
                let part = partition.part;
                format!(
                    "{part} {} {} {}\n",
                    part.type_guid(architecture),
                    partition.start >> 20,
                    partition.size >> 20
                )
            });
            lines.collect::<String>()
        };
        for architecture in Architecture::ALL {
            let golden = match architecture {
                Architecture::Amd64 => include_str!("layout.amd64.golden"),
                Architecture::Arm64 => include_str!("layout.arm64.golden"),
            };
            let text = text(architecture);
            assert_eq!(text, golden, "\n{text}");
        }
    }
}
