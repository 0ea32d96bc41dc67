//! A shop that sells, with some sales rolled back and one sent twice, and the account of what became of each.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio_postgres::GenericClient;
use uuid::Uuid;

use super::TOPIC;
use crate::pg::Connector;
use crate::pg::connect::Connection;
use crate::pg::inspect::{self, MessageStory};

const CUSTOMERS: [&str; 3] = ["ada", "grace", "edsger"];
const ORDERS: usize = 12;

/// Publishing and handling it all takes a second or two.
const PATIENCE: Duration = Duration::from_secs(30);

/// One order as the shop saw it.
struct Sale {
    order: i32,
    customer: &'static str,
    /// `None`: its transaction was rolled back.
    message: Option<Uuid>,
}

/// Sells, waits until every committed order is handled, tells what happened. An error if a promise was broken.
pub(super) async fn run(connector: &Connector) -> anyhow::Result<()> {
    let mut client = connector.connect().await?;
    client
        .batch_execute(
            "create table if not exists orders (id integer generated always as identity primary key, customer text not null)",
        )
        .await?;
    println!(
        "A shop takes {ORDERS} orders, each in one transaction of its own; every fourth is rolled back:"
    );
    println!("  begin; insert into orders ...; select outboxd.enqueue('{TOPIC}', ...); commit\n");
    let mut sales = Vec::new();
    for number in 0..ORDERS {
        sales.push(sell(&mut client, number).await?);
    }
    // A customer who clicked twice: another message of the same operation.
    let Sale { order, customer, .. } = sales[0];
    let again = enqueue(&*client, order, customer).await?;
    sales.push(Sale { order, customer, message: Some(again) });

    let stories = handled(&client, &sales).await?;
    tell(&sales, &stories);
    check(&sales, &stories)
}

async fn sell(client: &mut Connection, number: usize) -> anyhow::Result<Sale> {
    let customer = CUSTOMERS[number % CUSTOMERS.len()];
    let transaction = client.transaction().await?;
    let row =
        transaction.query_one("insert into orders (customer) values ($1) returning id", &[&customer]).await?;
    let order = row.get(0);
    let message = enqueue(&transaction, order, customer).await?;
    if number % 4 == 3 {
        transaction.rollback().await?;
        return Ok(Sale { order, customer, message: None });
    }
    transaction.commit().await?;
    Ok(Sale { order, customer, message: Some(message) })
}

async fn enqueue(client: &impl GenericClient, order: i32, customer: &str) -> anyhow::Result<Uuid> {
    let row = client
        .query_one(
            "select outboxd.enqueue($1::text, jsonb_build_object('order', $2::integer, 'customer', $3::text),
               key => $3, type => 'OrderPlaced', idempotency_key => 'order-' || $2::integer)",
            &[&TOPIC, &order, &customer],
        )
        .await?;
    Ok(row.get(0))
}

async fn handled(client: &Connection, sales: &[Sale]) -> anyhow::Result<HashMap<Uuid, MessageStory>> {
    let started = Instant::now();
    loop {
        let mut stories = HashMap::new();
        for id in sales.iter().filter_map(|sale| sale.message) {
            if let Some(story) = inspect::message(client, id).await? {
                stories.insert(id, story);
            }
        }
        if stories.values().all(|story| !story.handled.is_empty()) {
            return Ok(stories);
        }
        if started.elapsed() > PATIENCE {
            bail!("not everything was handled within {}", humantime::format_duration(PATIENCE));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn tell(sales: &[Sale], stories: &HashMap<Uuid, MessageStory>) {
    for Sale { order, customer, message } in sales {
        let Some(story) = message.and_then(|id| stories.get(&id)) else {
            println!("  order {order:>2} of {customer:<6}  rolled back  never published");
            continue;
        };
        let state = &story.message.state;
        for handled in &story.handled {
            let place = format!("{}[{}] at offset {}", handled.topic, handled.partition, handled.offset);
            let (sent, done) = match handled.duplicate_of {
                None => ("committed", format!("handled once by group {}", handled.group)),
                Some(_) => ("sent again", "skipped: the operation is done".to_owned()),
            };
            println!("  order {order:>2} of {customer:<6}  {sent:<11}  {state} to {place:<22}  {done}");
        }
    }
}

fn check(sales: &[Sale], stories: &HashMap<Uuid, MessageStory>) -> anyhow::Result<()> {
    let committed = sales.iter().filter(|sale| sale.message.is_some()).count();
    let published = stories.values().filter(|story| story.message.state == "published").count();
    let (skipped, handled): (Vec<_>, Vec<_>) =
        stories.values().flat_map(|story| &story.handled).partition(|handled| handled.duplicate_of.is_some());
    println!(
        "\n{committed} messages committed: {published} published, {} handled, {} skipped. {} rolled back: never seen.",
        handled.len(),
        skipped.len(),
        sales.len() - committed,
    );
    for customer in CUSTOMERS {
        let of_customer = sales.iter().filter(|sale| sale.customer == customer);
        let offsets = of_customer
            .filter_map(|sale| stories.get(&sale.message?)?.handled.first().map(|first| first.offset));
        if !offsets.is_sorted() {
            bail!("the messages of {customer} are out of order");
        }
    }
    if published != committed || handled.len() + 1 != committed || skipped.len() != 1 {
        bail!("that is not what was promised");
    }
    println!("The messages of each customer stand in Kafka in the order of their commits.");
    Ok(())
}
