import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.apis.ClientConfiguration;
import org.apache.rocketmq.client.apis.ClientServiceProvider;
import org.apache.rocketmq.client.apis.message.Message;
import org.apache.rocketmq.client.apis.producer.Producer;
import org.apache.rocketmq.client.apis.producer.SendReceipt;

/**
 * A producer as a user of the official client for Java writes one; see ../main.rs for what it has to do and say.
 *
 * <p>Usage: Producing ADDRESS plain|tls once|steadily
 */
public class Producing {
    static final int MESSAGES = 100;
    static final String[] GROUPS = {"red", "green", "blue"};
    static final int OF_A_GROUP = 20;
    static final ClientServiceProvider PROVIDER = ClientServiceProvider.loadService();

    public static void main(String[] args) throws Exception {
        ClientConfiguration configuration =
            ClientConfiguration.newBuilder().setEndpoints(args[0]).enableSsl(args[1].equals("tls")).build();
        Producer producer = PROVIDER.newProducerBuilder()
            .setClientConfiguration(configuration)
            .setTopics("plain", "ordered")
            .build();
        say("started", -1, null);
        if (args[2].equals("once")) {
            once(producer);
            say("done", -1, null);
            System.in.read();
        } else {
            steadily(producer);
        }
        producer.close();
        say("ended", -1, null);
        System.exit(0);
    }

    static void say(String kind, int n, SendReceipt receipt) {
        String id = receipt == null ? "" : ",\"id\":\"" + receipt.getMessageId() + "\"";
        synchronized (System.out) {
            System.out.println("{\"kind\":\"" + kind + "\",\"n\":" + n + id + "}");
            System.out.flush();
        }
    }

    static Message plain(String kind, int n) {
        return PROVIDER.newMessageBuilder()
            .setTopic("plain")
            .setBody((kind + "-" + n).getBytes(StandardCharsets.UTF_8))
            .setTag(n % 2 == 0 ? "even" : "odd")
            .setKeys(kind + "-key-" + n)
            .addProperty("n", Integer.toString(n))
            .addProperty("language", "Java ✓")
            .build();
    }

    static Message ordered(String topic, String group, int n) {
        return PROVIDER.newMessageBuilder()
            .setTopic(topic)
            .setBody((group + "-" + n).getBytes(StandardCharsets.UTF_8))
            .setMessageGroup(group)
            .build();
    }

    static void once(Producer producer) throws Exception {
        for (int n = 0; n < MESSAGES; n++) {
            say("sync", n, producer.send(plain("sync", n)));
        }
        List<CompletableFuture<SendReceipt>> sent = new ArrayList<>();
        for (int n = 0; n < MESSAGES; n++) {
            sent.add(producer.sendAsync(plain("async", n)));
        }
        for (int n = 0; n < MESSAGES; n++) {
            say("async", n, sent.get(n).get(30, TimeUnit.SECONDS));
        }
        for (int n = 0; n < OF_A_GROUP; n++) {
            for (String group : GROUPS) {
                say(group, n, producer.send(ordered("ordered", group, n)));
            }
        }
        try {
            producer.send(ordered("plain", "red", 0));
            System.out.println("{\"kind\":\"conflict\",\"refused\":false}");
        } catch (Exception error) {
            System.out.println("{\"kind\":\"conflict\",\"refused\":true}");
        }
    }

    static void steadily(Producer producer) throws Exception {
        for (int n = 0; System.in.available() == 0; n++) {
            try {
                say("steady", n, producer.send(plain("steady", n)));
            } catch (Exception error) {
                say("failed", n, null);
            }
            Thread.sleep(10);
        }
    }
}
