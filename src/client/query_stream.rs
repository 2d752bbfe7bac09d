//! The whole answer to a query, page after page.

use super::{Client, ClientError, Message, Query};

/// Messages that a query finds. Pages are fetched as they are needed, one at a time.
#[derive(Debug)]
pub struct QueryStream<'a> {
    client: Client,
    query: Query<'a>,
    page: std::vec::IntoIter<Message>,
    /// Whether `query` names a page that was not fetched yet.
    has_more: bool,
    incomplete: Option<String>,
}

impl Client {
    /// Finds messages from `query`'s page on, [`Query::limit`] of them with each call.
    ///
    /// ```
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let data = format!("server.data={}", dir.path().join("data").display());
    /// # let sets = ["server.listen=127.0.0.1:0", "server.http=127.0.0.1:0", "store.segment_size=64MiB", &data];
    /// # let config = mainstem::config::Config::load(None, &sets.map(str::to_owned))?;
    /// # let server = mainstem::server::spawn(config).await?;
    /// # let server_address = server.listening().grpc.to_string();
    /// use mainstem::client::{Client, Order, Query, Selector};
    /// use mainstem::format::batch::{BatchBuilder, NewMeta};
    ///
    /// let client = Client::connect(&server_address).await?;
    /// let mut batch = BatchBuilder::new();
    /// for body in ["one book", "one pen", "a lamp"] {
    ///     batch.push(&NewMeta { keys: vec!["customer-7"], ..NewMeta::default() }, body.as_bytes());
    /// }
    /// client.send("orders", None, batch.finish()).await?;
    ///
    /// let mut found = client.query_all(Query {
    ///     selector: Selector::Key { topic: "orders", key: "customer-7" },
    ///     begin: None,
    ///     end: None,
    ///     order: Order::OldestFirst,
    ///     limit: 2,
    ///     page: String::new(),
    /// });
    /// let mut bodies = Vec::new();
    /// while let Some(message) = found.next().await {
    ///     bodies.push(message?.body);
    /// }
    /// assert_eq!(bodies, ["one book", "one pen", "a lamp"]);
    /// assert_eq!(found.incomplete(), None);
    /// # server.stop().await?;
    /// # Ok(())
    /// # }
    /// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
    /// ```
    pub fn query_all<'a>(&self, query: Query<'a>) -> QueryStream<'a> {
        let page = Vec::new().into_iter();
        QueryStream { client: self.clone(), query, page, has_more: true, incomplete: None }
    }
}

impl QueryStream<'_> {
    /// The next message, in the order asked for; `None` behind the last. A future that is dropped loses nothing.
    ///
    /// # Errors
    /// As of [`Client::query`]; the next call asks for the same page again.
    pub async fn next(&mut self) -> Option<Result<Message, ClientError>> {
        loop {
            if let Some(message) = self.page.next() {
                return Some(Ok(message));
            }
            if !self.has_more {
                return None;
            }
            match self.client.query(&self.query).await {
                Ok(found) => {
                    self.page = found.messages.into_iter();
                    self.incomplete = self.incomplete.take().or(found.incomplete);
                    self.has_more = found.next_page.is_some();
                    self.query.page = found.next_page.unwrap_or_default();
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Why messages may be missing in what was fetched so far, if they may.
    pub fn incomplete(&self) -> Option<&str> {
        self.incomplete.as_deref()
    }
}
