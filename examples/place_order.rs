use std::error::Error;

use tokio_postgres::{Client, NoTls};

const ENQUEUE: &str = "
    select outboxd.enqueue('orders', $1::text::jsonb, key => $2, type => 'OrderPlaced', idempotency_key => $3)::text";

/// Stores the order and its message, both or neither; returns the message's id, or `None` if there is no such customer.
pub async fn place_order(
    client: &mut Client,
    customer: &str,
) -> Result<Option<String>, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    let insert = "insert into orders (customer) values ($1) returning id";
    let order: i32 = transaction.query_one(insert, &[&customer]).await?.get(0);
    let (payload, key) = (format!("{{\"order\": {order}}}"), format!("order-{order}"));
    let message = transaction.query_one(ENQUEUE, &[&payload, &customer, &key]).await?.get(0);
    if customer == "nobody" {
        // A transaction that is dropped is rolled back: neither order nor message.
        return Ok(None);
    }
    transaction.commit().await?;
    Ok(Some(message))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("DATABASE_URL")?;
    let (mut client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    println!("{}", place_order(&mut client, "ada").await?.ok_or("there is no ada")?);
    assert_eq!(place_order(&mut client, "nobody").await?, None);
    Ok(())
}
