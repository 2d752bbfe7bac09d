use super::rig as _;
