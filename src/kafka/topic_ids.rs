//! A topic's id, which tells it from one of the same name that was made anew. rdkafka has no call for it, librdkafka has:
//! the only place with unsafe code, each block as small as a call.
#![allow(unsafe_code, reason = "DescribeTopics of librdkafka is not wrapped by rdkafka 0.39")]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::time::Duration;

use rdkafka::bindings as native;
use rdkafka::error::RDKafkaErrorCode;
use uuid::Uuid;

/// What librdkafka gave us to destroy, and how.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: it is ours, not null, and destroyed once.
            unsafe { (self.1)(self.0) }
        }
    }
}

/// The ids of those topics that are there and have one; brokers before 2.8 have none. Blocks for up to `patience`.
///
/// `client` is a handle of librdkafka that outlives the call.
pub(super) fn topic_ids(
    client: *mut native::rd_kafka_t,
    topics: &[String],
    patience: Duration,
) -> Result<HashMap<String, Uuid>, RDKafkaErrorCode> {
    // A name with a zero byte is no topic's.
    let names: Vec<CString> = topics.iter().filter_map(|name| CString::new(name.as_str()).ok()).collect();
    if names.is_empty() {
        return Ok(HashMap::new());
    }
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `client` is alive. The collection copies the names, the request copies collection and options, and the queue
    // lives until its event is destroyed: what is bound last is dropped first.
    let (_queue, event) = unsafe {
        let collection = Owned(
            native::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()),
            native::rd_kafka_TopicCollection_destroy,
        );
        let options = Owned(
            native::rd_kafka_AdminOptions_new(
                client,
                native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
            ),
            native::rd_kafka_AdminOptions_destroy,
        );
        native::rd_kafka_AdminOptions_set_request_timeout(options.0, millis, ptr::null_mut(), 0);
        let queue = Owned(native::rd_kafka_queue_new(client), native::rd_kafka_queue_destroy);
        native::rd_kafka_DescribeTopics(client, collection.0, options.0, queue.0);
        let event = Owned(native::rd_kafka_queue_poll(queue.0, millis), native::rd_kafka_event_destroy);
        (queue, event)
    };
    if event.0.is_null() {
        return Err(RDKafkaErrorCode::OperationTimedOut);
    }
    // SAFETY: the event is alive, and all that is read belongs to it.
    unsafe {
        match RDKafkaErrorCode::from(native::rd_kafka_event_error(event.0)) {
            RDKafkaErrorCode::NoError => {}
            code => return Err(code),
        }
        let result = native::rd_kafka_event_DescribeTopics_result(event.0);
        if result.is_null() {
            return Err(RDKafkaErrorCode::BadMessage);
        }
        let mut count = 0;
        let described = native::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        Ok((0..count).filter_map(|index| described_id(*described.add(index))).collect())
    }
}

/// # Safety
///
/// `topic` is alive.
unsafe fn described_id(topic: *const native::rd_kafka_TopicDescription_t) -> Option<(String, Uuid)> {
    // SAFETY: all of these only read what belongs to `topic`.
    let (name, high, low) = unsafe {
        let error = native::rd_kafka_TopicDescription_error(topic);
        if !error.is_null()
            && RDKafkaErrorCode::from(native::rd_kafka_error_code(error)) != RDKafkaErrorCode::NoError
        {
            return None;
        }
        let id = native::rd_kafka_TopicDescription_topic_id(topic);
        if id.is_null() {
            return None;
        }
        (
            CStr::from_ptr(native::rd_kafka_TopicDescription_name(topic)),
            native::rd_kafka_Uuid_most_significant_bits(id),
            native::rd_kafka_Uuid_least_significant_bits(id),
        )
    };
    let id = Uuid::from_u64_pair(high.cast_unsigned(), low.cast_unsigned());
    (!id.is_nil()).then(|| (name.to_string_lossy().into_owned(), id))
}
