//! QueryMessages.

use tonic::{Request, Response};

use super::{dead_letter, or_default};
use crate::broker::Order;
use crate::broker::{Broker, BrokerError, QueriedMessage, QueryRequest, RequestFault, Selector};
use crate::grpc::deadline;
use crate::grpc::outgoing::Held;
use crate::message::{QueueId, QueueOffset, Timestamp};
use crate::proto::query_messages_request::{Order as WireOrder, Selector as WireSelector};
use crate::proto::{FoundMessage, QueryMessagesRequest, QueryMessagesResponse};

const DEFAULT_LIMIT: u32 = 32;

pub(super) async fn query(
    broker: &Broker,
    request: Request<QueryMessagesRequest>,
) -> Result<Response<QueryMessagesResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let refuse = |fault| BrokerError::BadRequest { fault };
    let order = match WireOrder::try_from(request.order) {
        Ok(WireOrder::NewestFirst) => Order::NewestFirst,
        Ok(WireOrder::OldestFirst) => Order::OldestFirst,
        Err(_) => return Err(refuse(RequestFault::Enumeration { field: "order" })),
    };
    let selector = request.selector.as_ref().ok_or(refuse(RequestFault::NoSelector))?;
    let page = broker
        .query(QueryRequest {
            selector: self::selector(selector)?,
            begin: request.begin_ms.map(Timestamp::new),
            end: request.end_ms.map(Timestamp::new),
            order,
            limit: or_default(request.limit, DEFAULT_LIMIT),
            page_token: &request.page_token,
            deadline,
        })
        .await?;
    let mut response = Response::new(QueryMessagesResponse {
        messages: page.messages.into_iter().map(found).collect(),
        next_page_token: page.next_page_token.unwrap_or_default(),
        complete: page.incomplete.is_none(),
        incomplete_reason: page.incomplete.map(|why| why.to_string()).unwrap_or_default(),
    });
    if let Some(permit) = page.permit {
        response.extensions_mut().insert(Held::new(permit));
    }
    Ok(response)
}

fn selector(selector: &WireSelector) -> Result<Selector<'_>, BrokerError> {
    Ok(match selector {
        WireSelector::Key(by) => Selector::Key { topic: &by.topic, key: &by.key },
        WireSelector::ProducerId(by) => Selector::ProducerId { topic: &by.topic, id: &by.id },
        WireSelector::MessageId(text) => {
            let bad = |_| BrokerError::BadRequest { fault: RequestFault::MessageId };
            Selector::MessageId(text.parse().map_err(bad)?)
        }
        WireSelector::Offset(by) => Selector::Place {
            topic: &by.topic,
            queue: QueueId::new(by.queue),
            offset: QueueOffset::new(by.offset),
        },
    })
}

fn found(message: QueriedMessage) -> FoundMessage {
    FoundMessage {
        message_id: message.id.to_string(),
        topic: message.topic,
        queue: message.queue.get(),
        queue_offset: message.queue_offset.get(),
        store_time_ms: message.store_time.get(),
        dead_letter: dead_letter(&message.attributes),
        batch: message.batch,
    }
}
