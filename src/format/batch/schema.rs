//! The numbers of the fields, by message.

/// `Batch.metas`.
pub(super) const BATCH_METAS: u32 = 1;
/// `Batch.codec`.
pub(super) const BATCH_CODEC: u32 = 2;
/// `Batch.bodies_len`.
pub(super) const BATCH_BODIES_LEN: u32 = 3;
/// `Batch.bodies_crc`.
pub(super) const BATCH_BODIES_CRC: u32 = 4;
/// `Batch.bodies`.
pub(super) const BATCH_BODIES: u32 = 5;

/// `Meta.keys`.
pub(super) const META_KEYS: u32 = 1;
/// `Meta.tag`.
pub(super) const META_TAG: u32 = 2;
/// `Meta.properties`.
pub(super) const META_PROPERTIES: u32 = 3;
/// `Meta.message_group`.
pub(super) const META_MESSAGE_GROUP: u32 = 4;
/// `Meta.id`.
pub(super) const META_ID: u32 = 5;
/// `Meta.born_ms`.
pub(super) const META_BORN_MS: u32 = 6;
/// `Meta.body_len`.
pub(super) const META_BODY_LEN: u32 = 7;
/// `Meta.encoding`.
pub(super) const META_ENCODING: u32 = 8;
/// `Meta.trace_context`.
pub(super) const META_TRACE_CONTEXT: u32 = 9;
/// `Meta.born_host`.
pub(super) const META_BORN_HOST: u32 = 10;

/// `Property.key`.
pub(super) const PROPERTY_KEY: u32 = 1;
/// `Property.value`.
pub(super) const PROPERTY_VALUE: u32 = 2;
