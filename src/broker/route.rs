//! Which queue a message group belongs to: the jump consistent hash over the Java string hash, so that Apache
//! RocketMQ's brokers and this one agree.

/// The multiplier of the hash's linear congruential generator (Lamping and Veach, 2014).
const MULTIPLIER: u64 = 2_862_933_555_777_941_757;

/// The queue of `group` among `queues` queues; 0 if there are none.
pub(crate) fn queue_of_group(group: &str, queues: u32) -> u32 {
    // Java hashes UTF-16 code units in 32 bits and widens the result with its sign.
    let hash = group
        .encode_utf16()
        .fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    jump(i64::from(hash).cast_unsigned(), queues)
}

fn jump(mut state: u64, buckets: u32) -> u32 {
    let mut candidate = 0_u32;
    loop {
        state = state.wrapping_mul(MULTIPLIER).wrapping_add(1);
        // 31 bits and a quotient below 2^63: exact in an f64, as in the original.
        let draw = ((state >> 33) + 1) as f64 / (1_u64 << 31) as f64;
        let next = (f64::from(candidate) + 1.0) / draw;
        if next >= f64::from(buckets) {
            return candidate;
        }
        candidate = next as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_go_where_rocketmq_sends_them() {
        for (group, queues) in [
            ("a", [0, 0, 0, 0, 0]),
            ("order-1", [0, 0, 3, 3, 3]),
            ("order-2", [0, 0, 2, 2, 11]),
            ("group-0001", [0, 0, 2, 7, 7]),
            ("用户42", [0, 1, 3, 4, 13]),
        ] {
            let found = [1, 2, 4, 8, 16].map(|n| queue_of_group(group, n));
            assert_eq!(found, queues, "{group}");
        }
    }
}
