//! The log under crashes, full and failing disks, and random use.
